"""What is in a data set: an audit of it, and which groups a config's sampling draws."""
