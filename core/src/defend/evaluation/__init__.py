"""A config to records and a report: which rows, against which arms, crafted and judged. It draws nothing."""
