"""What an artifact answers on labelled images: accuracy, and where it keeps tokens."""
