"""External programs that make the synthesised sounds."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from recipes.nano import RecipeError

FLUID_R3 = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
TIM_GM6MB = Path("/usr/share/sounds/sf2/TimGM6mb.sf2")
# Debian package: the command or file that it brings
NEEDED = {
    "fluidsynth": "fluidsynth",
    "espeak-ng": "espeak-ng",
    "flite": "flite",
    "fluid-soundfont-gm": str(FLUID_R3),
    "timgm6mb-soundfont": str(TIM_GM6MB),
}


def require_tools() -> None:
    """Check that everything is installed.

    Raises:
        RecipeError: names what is missing and the command that installs it.
    """
    missing = [
        package for package, thing in NEEDED.items() if not (shutil.which(thing) or Path(thing).is_file())
    ]
    if missing:
        raise RecipeError(
            f"the synthesised sounds need {', '.join(missing)}: run `apt-get install {' '.join(missing)}`, "
            "or choose --no-synthesise."
        )


def run_tool(command: list[str]) -> None:
    """Run a program quietly.

    Raises:
        RecipeError: it is missing or failed.
    """
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError as error:
        raise RecipeError(f"{command[0]} is not installed; run `apt-get install {command[0]}`.") from error
    except subprocess.CalledProcessError as error:
        last = (
            error.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {error.returncode}"]
        )[-1]
        raise RecipeError(f"{command[0]} failed: {last}; try `{' '.join(command)}` by hand.") from error
