"""What users type: options, operator parameters, inputs and outputs."""
