"""``python -m scarcity_ray_client``, where the command is not on the path."""

from scarcity_ray_client.command import main

if __name__ == "__main__":
    main()
