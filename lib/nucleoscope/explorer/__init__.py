"""The live notebook: one text, token by token, with its candidates."""


def __getattr__(name: str):
    """`Explorer`, imported on first use, because it imports torch and plotly."""
    if name == "Explorer":
        from nucleoscope.explorer.explorer import Explorer

        return Explorer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
