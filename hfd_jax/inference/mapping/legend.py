"""The legend of a class map: a raster attribute table beside the file, which GDAL and QGIS read with it."""

from xml.etree import ElementTree

from hfd_jax.data.facts import Facts

ENDING = ".aux.xml"
# Columns: name, type (0 integer, 2 text), usage (5 value, 2 name, 6 to 8 red, green, blue), as GDAL numbers them.
_COLUMNS = (("Value", 0, 5), ("Class", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8))


def legend(facts: Facts) -> bytes:
    """The content of MAP.tif.aux.xml: names and colours of the classes of band 1, as category names and as a table."""
    root = ElementTree.Element("PAMDataset")
    band = ElementTree.SubElement(root, "PAMRasterBand", band="1")
    categories = ElementTree.SubElement(band, "CategoryNames")
    for name in facts.class_names:
        ElementTree.SubElement(categories, "Category").text = name
    table = ElementTree.SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    for index, (name, kind, usage) in enumerate(_COLUMNS):
        column = ElementTree.SubElement(table, "FieldDefn", index=str(index))
        for key, value in (("Name", name), ("Type", kind), ("Usage", usage)):
            ElementTree.SubElement(column, key).text = str(value)
    for index, (name, colour) in enumerate(zip(facts.class_names, facts.class_colours, strict=True)):
        row = ElementTree.SubElement(table, "Row", index=str(index))
        for value in (index, name, *colour):
            ElementTree.SubElement(row, "F").text = str(value)
    ElementTree.indent(root)
    return ElementTree.tostring(root, "utf-8", xml_declaration=False)  # GDAL reads nothing after a declaration
