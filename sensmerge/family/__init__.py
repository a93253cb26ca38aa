"""Base and experts opened and checked against each other; the merged model's config."""
