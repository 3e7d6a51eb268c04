"""The command that brings somebody's checkpoint into a model repository."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("import", short_help="Put a Hugging Face checkpoint into a model repository.")
@click.argument("checkpoint", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--task",
    type=click.Choice(
        ["translation", "text_generation", "automatic-speech-recognition", "text_to_image"]
    ),
    help="Refuse a checkpoint that is for another.  [default: what its architecture is for]",
)
@click.option(
    "--model-repository",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("model_repo"),
    show_default=True,
    metavar="DIR",
    help="Made if it is not there.",
)
@click.option("--name", help="The model's name.  [default: that of the checkpoint's directory]")
def import_model(
    checkpoint: Path, task: str | None, model_repository: Path, name: str | None
) -> None:
    """Publish the Hugging Face checkpoint in DIR as a model's next version.

    Marian, GPT-2, Llama, Wav2Vec2 (with CTC) and Whisper architectures, as safetensors. The
    exported graphs are compared with torch, and published only if they compute the same.

    A diffusers pipeline has a directory, too: DDPMPipeline, DDIMPipeline and
    StableDiffusionPipeline, with the schedulers DDPM, DDIM, Euler (discrete), DPM-Solver++
    (multistep) and PNDM, in whose place DDIM is served. Nothing is downloaded.

    \b
    Examples:
      slipway import opus-mt-en-de --model-repository model_repo
      slipway import stable-diffusion --name painter
    """
    # torch and transformers take seconds to import, and --help answers at once.
    from training.importing import import_checkpoint

    imported = import_checkpoint(checkpoint, model_repository, name, task)
    for check in imported.parity.checks:
        if isinstance(check.measured, float):
            click.echo(f"passed  {check.name}: {check.measured:.4g}, limit {check.limit:.4g}")
    for remark in imported.remarks:
        click.echo(remark)
    click.echo(f"made {imported.version}")
    click.echo(f"next: slipway serve --model-repository {model_repository}")
