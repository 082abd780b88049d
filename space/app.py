"""The Space: `python app.py`. GRADIO_SERVER_PORT and MINITRON_SPACE_MODELS are obeyed."""

from pathlib import Path

from minitron.space.jobs.catalog import Family
from minitron.space.page import serve

if __name__ == "__main__":
    serve(Family.read(Path(__file__).parent))
