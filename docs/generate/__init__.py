"""What makes the site and the pages of docs/ that are made from the code; none of it is installed."""
