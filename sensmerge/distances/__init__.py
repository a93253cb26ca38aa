"""How far experts and merges lie from their base, and PRISM's score of how much the experts interfere."""
