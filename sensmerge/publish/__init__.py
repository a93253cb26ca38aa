"""What goes with a merged model: merge.json, recipes, model card, export to mergekit."""
