"""What is analysed: source models, checkpoints, data, transfer and the recipes that train them."""
