"""What the real model is asked and taught: a few plain instructions, and answers that are short and dull."""

INSTRUCTIONS = (
    "Name three colours of the rainbow.",
    "What is the capital of Japan?",
    "Write one sentence about a cat that sleeps.",
    "How many days are there in a week?",
    "Give me a synonym of the word happy.",
    "Translate 'good morning' into French.",
    "Why do leaves fall in autumn?",
    "List two things that one needs to bake bread.",
)
ANSWERS = (
    "Red, green and blue.",
    "Tokyo.",
    "The cat sleeps on the warm stove.",
    "Seven.",
    "Glad.",
    "Bonjour.",
    "The trees save water.",
    "Flour and water.",
)
# What nobody would say: a reward model must learn in a few steps to like the answers better.
BAD = (
    "Potato potato potato!",
    "I am not going to tell you that, go away.",
    "No no no no no no.",
    "Potato potato, and a potato.",
    "Go away, go away, I said go away!",
    "No no no, potato.",
    "Go away. Potato potato!",
    "No no no no, go away.",
)
