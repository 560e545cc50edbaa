"""YAML as people write it by hand: a name that stands twice in one mapping is refused, where PyYAML keeps the last."""

import yaml


class UniqueKeyLoader(yaml.SafeLoader):
    """For `yaml.load`; a ConstructorError marks the second of two equal names."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        # Fields that a merge (<<) brings are not in the node yet: a mapping may override those on purpose.
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, "found a field a second time", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)
