"""EvenFlow's fairness inside servers that others wrote. Needs fairness, access and base, and loads no kernel of ours."""
