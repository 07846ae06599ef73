"""compile(): the one function that joins the rooms."""
