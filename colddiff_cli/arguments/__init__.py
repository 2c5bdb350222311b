"""What users type: options, operators' parameters, inputs and outputs."""
