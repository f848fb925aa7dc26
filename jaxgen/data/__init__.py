"""Sources of examples and the pipeline that makes batches of them."""
