"""Train models, export them, prove the export, publish it into a model repository."""
