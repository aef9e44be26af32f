"Under the hood: configurations, files, pictures, the training loop, and what is measured."
