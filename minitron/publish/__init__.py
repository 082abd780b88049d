"""Publishing on the Hub: which files of a folder, the upload, and Spaces."""
