"""Fine-tuning: data, the loop, and the plan that the command line states first."""
