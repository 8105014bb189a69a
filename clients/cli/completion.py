"""`keyside completion`: the script that makes a shell complete our commands."""

import click
from click.shell_completion import get_completion_class

__all__ = ["completion"]

_USE = {
    "bash": 'eval "$(keyside completion bash)"  in ~/.bashrc',
    "zsh": 'eval "$(keyside completion zsh)"  in ~/.zshrc',
    "fish": "keyside completion fish > ~/.config/fish/completions/keyside.fish",
}


@click.command(epilog="\b\nTo use it:\n" + "\n".join(f"  {line}" for line in _USE.values()))
@click.argument("shell", type=click.Choice(list(_USE)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell."""
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101  # click knows the three
    click.echo(kind(ctx.find_root().command, {}, "keyside", "_KEYSIDE_COMPLETE").source())
