"""The planner as a page in a browser: what is filled in, its link, who answers and what is shown.

Only `page` knows Gradio.
"""
