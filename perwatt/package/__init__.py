"""The deployable file: network, preprocessing, labels, golden examples."""
