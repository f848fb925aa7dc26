"""The parts that generator networks are made of."""
