"The paper's ablation, measured, and what bits and generators do."
