"""Graph to Graph: one file per rewrite, one ordered tuple."""
