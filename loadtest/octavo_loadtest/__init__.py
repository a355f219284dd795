"""A load tester that knows only HTTP and the OpenAI API, so that it can measure any server."""
