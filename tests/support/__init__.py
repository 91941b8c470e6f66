"""What tests share: fakes, factories, small models, rigs and programs."""
