"""One file per engine the lab can run."""
