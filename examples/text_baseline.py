"""Few-shot intents without meta-training: the nearest class mean of TF-IDF vectors, on the recipes' own test tasks.

python examples/text_baseline.py clinc150-5way-1shot --data DATA
"""

import argparse
import json
import math
from pathlib import Path

import torch

from headstart import recipes
from headstart.recipes import IntentRecipe
from headstart.recipes.recipe import TEST_SEED
from headstart.training.evaluate import evaluate, fixed_tasks


class NearestMean:
    """Outputs are cosines between a query and the mean of each class's support vectors.

    Args:
        weights: Of each bucket; 0 for padding.
        ways: Classes per task.
    """

    def __init__(self, weights: torch.Tensor, ways: int):
        self.weights, self.ways = weights, ways

    def vectors(self, tokens: torch.Tensor) -> torch.Tensor:
        """Unit vectors `[..., buckets]` of hashed texts `[..., length]`."""
        empty = torch.zeros(*tokens.shape[:-1], len(self.weights))
        return torch.nn.functional.normalize(empty.scatter_add(-1, tokens, self.weights[tokens]), dim=-1)

    def predict(self, tasks, steps=None, norm=None, *, one_at_a_time=False) -> torch.Tensor:
        """`[tasks, 1, examples, ways]`."""
        found = []
        for support, query in zip(tasks.support.inputs, tasks.query.inputs, strict=True):
            means = self.vectors(support).reshape(self.ways, -1, len(self.weights)).mean(1)
            found.append(self.vectors(query) @ torch.nn.functional.normalize(means, dim=-1).T)
        return torch.stack(found).unsqueeze(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--num-tasks", type=int, default=600)
    arguments = parser.parse_args()
    recipe = recipes.experiment(arguments.recipe).recipe
    assert isinstance(recipe, IntentRecipe)
    known = recipe.source("train", arguments.data).store.tokens
    documents = torch.zeros(recipe.buckets)
    for row in known:
        documents[row.unique()] += 1
    weights = torch.tensor([math.log((1 + len(known)) / (1 + float(count))) for count in documents])
    weights[0] = 0.0
    source = recipe.source("test", arguments.data, recipe.shots, recipe.eval_queries)
    tasks = fixed_tasks(source, arguments.num_tasks, TEST_SEED)
    result = evaluate(NearestMean(weights, recipe.ways), tasks, recipe.metric, steps=0)
    print(json.dumps({"recipe": arguments.recipe, "tasks_digest": result.tasks_digest, **result.per_step[0]._asdict()}))


if __name__ == "__main__":
    main()
