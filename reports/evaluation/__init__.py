"""Numbers worked out from predictions: the ladder, calibration, net benefit, slides."""
