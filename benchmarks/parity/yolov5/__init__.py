"""Parity with YOLOv5."""
