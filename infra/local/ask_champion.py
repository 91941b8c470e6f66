"""Asks `models:/<lineage>@champion` through MLflow alone, as a server outside this project would.

Reads one JSON object a line on standard input ({"prompts": [...]}) and answers each with one line; the model is
loaded anew for every line, so that what is asked is what the alias points to now.
"""

import json
import sys
from typing import Any


def main(tracking_uri: str, lineage: str) -> None:
    """Answer lines until standard input ends."""
    import mlflow

    mlflow.set_tracking_uri(tracking_uri)
    for line in sys.stdin:
        prompts = json.loads(line)["prompts"]
        model: Any = mlflow.pyfunc.load_model(f"models:/{lineage}@champion")
        answers = model.predict(prompts, params={"max_new_tokens": 16})
        sys.stdout.write(json.dumps([str(answer) for answer in answers]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
