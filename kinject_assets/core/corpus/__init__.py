"""From wikis and files to articles and chunks."""
