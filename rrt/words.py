"""What the command and the library both say."""

JSON_FORMAT = 1  # of `rrt search --json`
PUBLISHED = "published"  # the model of that name
WHERE_FROM = (
    "a checkpoint of experiment_rerank.py, a folder or a repository of the hub with config.json and "
    f"model.safetensors, or '{PUBLISHED}', which fetches the published one; `make demo` trains one"
)
MAPS = ("float16", "int8", "binary")  # how an index keeps local maps: `rrt.map_codes`; the first one is the default
