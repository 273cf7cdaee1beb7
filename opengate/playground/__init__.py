"""The playground: where users talk to models and see to their keys, usage and limits, without a client of their own."""
