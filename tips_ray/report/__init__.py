"""A run as one static HTML file without external resources: `write_report(path, Report(...))`."""

from tips_ray.report.content import CaptionedImage, ImageQuery, PatchFeatures, ProbeScore, Report, TextQuery
from tips_ray.report.page import write_report
from tips_ray.report.pca import pca_rgb

__all__ = [
    "CaptionedImage",
    "ImageQuery",
    "PatchFeatures",
    "ProbeScore",
    "Report",
    "TextQuery",
    "pca_rgb",
    "write_report",
]
