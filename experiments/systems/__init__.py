"""The published systems A to E: their arms as configs, and the published figures."""
