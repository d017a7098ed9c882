"""The page where one sees a model learn, and the API behind it: `headstart serve`. Needs the extra `serve`."""
