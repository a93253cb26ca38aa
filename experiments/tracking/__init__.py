"""What Weights & Biases shows, when it is uploaded, offline mode, the dashboard."""
