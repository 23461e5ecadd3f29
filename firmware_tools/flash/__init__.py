"""Ways to put a seed on a board: card images, cards, SSH, a serial console, NVIDIA's flasher."""
