"""Jobs, one file a `--mode`: each has `run(recipe, workdir, ...)`, whose other parameters are flags."""
