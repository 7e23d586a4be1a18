"""What is measured, made from source."""

import os
import subprocess

from measure import Unmeasured

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))


def cargo(*what):
    command = ["cargo", "build", "--release", "--locked", *what]
    print("building:", " ".join(command), flush=True)
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise Unmeasured("the program does not build")


def program():
    cargo("--package", "synctool")
    return os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "release", "synctool")


def example(name, binary, given):
    """An example of the library, beside the program; the one that lies there already, if the program was given."""
    path = os.path.join(os.path.dirname(binary), "examples", name)
    if not (given and os.path.exists(path)):
        # Both packages, so that what they depend on is built once, with the same features.
        target = os.path.dirname(os.path.dirname(binary))
        cargo("--package", "synctool", "--package", "synctool-connectors", "--example", name, "--target-dir", target)
    return path
