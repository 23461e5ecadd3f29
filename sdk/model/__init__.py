"""What board and edge server do alike: run the graph, shape the distribution, draw the noise."""
