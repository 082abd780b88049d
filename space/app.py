"""The Space: `python app.py`. It reads GRADIO_SERVER_PORT and MINITRON_SPACE_MODELS."""

from pathlib import Path

from minitron.space.jobs.catalog import Catalog
from minitron.space.page import serve

if __name__ == "__main__":
    serve(Catalog.read(Path(__file__).parent))
