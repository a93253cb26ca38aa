"""How each benchmark asks and scores: HumanEval, MBPP, MATH, lm-eval's tasks, bits per byte."""
