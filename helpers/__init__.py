"""What the notebooks teach, in pieces to take home. Import the module you need: `from helpers import data, metrics`.

| module     | holds                                                                                   |
|------------|-----------------------------------------------------------------------------------------|
| `env`      | what this machine is, where models are;  `python -m helpers.env` prints it              |
| `data`     | read, check and split your data, find leaks, make conversations                         |
| `text`     | tokenise, mask prompts, see which tokens count, count lengths                           |
| `metrics`  | `evaluate`'s metrics offline, intervals, two models compared, `compute_metrics`         |
| `memory`   | the peak of a training and its parts: predicted without weights, measured while it runs |
| `generate` | what a model writes for a list of prompts, in batches; answers side by side             |
| `adapters` | what an adapter would train, whether a saved one fits, whether 4-bit training works     |
| `record`   | save, load and tabulate runs                                                            |
| `plots`    | takes numbers and an `ax`, returns the `ax`                                             |
| `widgets`  | panels: tune by hand, will it fit, decode; each works from code too                     |
| `checks`   | exercise checks that name the mistake                                                   |
| `preflight`| what is wrong with a training, before it runs                                           |
| `new`      | a project of your own, from a task, a model and your data                               |
"""
