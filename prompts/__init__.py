"""Prompts for language models as versioned Markdown files with front matter."""
