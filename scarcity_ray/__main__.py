"""``python -m scarcity_ray`` is the ``scarcity-ray`` command."""

from scarcity_ray.cli.main import main

if __name__ == "__main__":
    main(prog_name="python -m scarcity_ray")
