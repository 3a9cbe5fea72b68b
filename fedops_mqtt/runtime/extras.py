"""The extras of this package: which one brings a library, and the command that installs it."""

EXTRAS = {
    "boto3": "s3",
    "fsspec": "s3",
    "hydra": "hydra",
    "keras": "keras",
    "kubernetes": "kubernetes",
    "nicegui": "dashboard",
    "peft": "hf",
    "psycopg": "postgres",
    "s3fs": "s3",
    "sklearn": "sklearn",
    "torch": "torch",
    "transformers": "hf",
    "wandb": "wandb",
}
"""Optional libraries, by the name under which they are imported, and the extra that brings each."""


def how_to_install(error: ImportError) -> str:
    """Return a sentence for a library that is missing, with the one command that brings it.

    A library of none of the extras is only named: it is the user's own.
    """
    library = (error.name or "").partition(".")[0]
    if library not in EXTRAS:
        return f"{library!r} is not installed" if library else str(error)
    return f"{library!r} is not installed: pip install 'fedops-mqtt[{EXTRAS[library]}]'"
